"""From trajectories to short equations."""
