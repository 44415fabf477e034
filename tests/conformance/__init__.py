"""What every WorkerManager must do, written against the contract alone."""
