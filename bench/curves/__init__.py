"""Learning curves of many configurations, recorded once, so that searches can be replayed."""
