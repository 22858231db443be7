"""Files of others: halls of fame of PySR and Operon, tables of NumPy."""
