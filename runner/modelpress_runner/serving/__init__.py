"""Models in files of their runtimes, run without torch: what a file is called with, sessions, clocks."""
