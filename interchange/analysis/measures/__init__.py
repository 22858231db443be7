"""One kind of measurement a file: of an optimizer on recorded sequences, or of recordings side by side."""
