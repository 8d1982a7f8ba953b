"""What a sample, a prompt, a reply and a mask are. Imports nothing else of the project; importing it is light (no torch)."""

__version__ = "0.1.0"
