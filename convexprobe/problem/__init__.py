"""The objective, its derivatives, its lower bound, and cheap stand-ins for all of its rows."""
