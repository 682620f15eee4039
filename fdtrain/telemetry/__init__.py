"""What training costs: seconds of each phase, FLOPs, memory, and traces of chosen steps.

Above the engines, which know of `fdtrain.telemetry.clock` alone.
"""
