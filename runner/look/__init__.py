"""What a run sees and what became of it, as arrays that ``runner.pictures`` draws."""
