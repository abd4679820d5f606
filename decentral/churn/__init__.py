"""The churn harness: real processes under faults, and an audit of what they did."""
