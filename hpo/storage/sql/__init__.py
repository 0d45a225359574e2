"""SQL of the storage: rows, statements, retries, and the conditions of claims."""
