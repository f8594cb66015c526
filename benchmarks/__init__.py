"""Measurements that the documents quote; ``README.md`` here lists the commands."""
