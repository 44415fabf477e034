"""Bytes: the raw-asyncio HTTP that both planes share."""
