"""The objective, its derivatives, its lower bound, and the cheap stand-ins for all of its rows."""
