"""Other programs' spellings of expressions, exactly or not at all."""
