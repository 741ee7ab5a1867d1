"""Speed and memory beside what users run today. Every claim is a ratio measured side by side in one
run.
"""
