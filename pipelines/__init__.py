"""The application: commands, run directory, everything around a model. Importing it imports nothing heavy."""

__version__ = "0.1.0"
