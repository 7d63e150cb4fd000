"""`optimc reduce`: the smallest model that still shows a fault, as a reproduction of its own."""
