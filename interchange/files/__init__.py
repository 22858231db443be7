"""Files both backends write and read, with their schemas."""
