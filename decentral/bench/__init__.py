"""What `decentral bench` runs. Measurements live here and in native/bench, never in tests."""
