"""Contract suites for evaluators of your own."""
