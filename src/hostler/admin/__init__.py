"""Control plane: obeys operators."""
