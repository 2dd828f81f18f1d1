"""How good rankings are, and whether differences are more than chance.

Plain torch, except for distributed.py, which runs it on Ray, and report_schema.py, the report as it is stored.
"""
