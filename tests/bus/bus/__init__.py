"""The object on the bus: members, callers, authorisation, events, units."""
