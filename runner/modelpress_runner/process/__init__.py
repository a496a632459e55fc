"""The operating system's process: launched, stopped, watched. No torch here."""
