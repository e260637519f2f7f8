"""Carries plans out, and owns what that opens."""
