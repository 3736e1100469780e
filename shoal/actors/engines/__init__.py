"""What starts containers: one contract (`contract.py`), a sibling per engine. No Ray in here."""
