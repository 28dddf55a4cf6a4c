"""From the raw trace to the figures of the record: functions of values alone."""
