"""What both backends share and no framework is needed for: tables, configuration, data, randomness."""

__version__ = "0.1.0"
