"""Recording what optimizers see and do."""
