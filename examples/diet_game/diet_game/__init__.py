"""Diet Game: log what you eat, keep a streak, climb the board."""

__version__ = "1.0.0"
