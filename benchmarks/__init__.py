"""Speed comparisons of trick-runner with its peers."""
