"""The JSON Schema of study files, for editors."""
