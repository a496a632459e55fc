"""What can be known of a model before it is compressed: its layers, what hangs together, what it can do without."""
