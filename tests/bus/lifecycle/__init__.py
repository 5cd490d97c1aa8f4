"""The host is left accelerated and consistent, or plain, whatever fails and whenever."""
