"""What a study found: leaderboard and export."""
