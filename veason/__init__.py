"""What a sample, a prompt, a reply and a mask are. Imports nothing else of the project, and no torch until asked."""

__version__ = "0.1.0"
