"""Allocates and frees all the time, small and large, and checks what it holds; tests/e2e/test_programs.py runs it."""
import gc
import random
import signal
import sys
import time

random.seed(1)
stop = False


def on_signal(*_):
    global stop
    stop = True


signal.signal(signal.SIGTERM, on_signal)
held = {}
turn = 0
print("ready", flush=True)
while not stop:
    for _ in range(200):
        turn += 1
        slot = random.randrange(300)
        if slot in held:
            number, text, pieces = held.pop(slot)
            if text != bytes([number % 251]) * len(text) or pieces != list(range(number % 50)):
                print(f"FAIL slot {slot} of turn {number}", flush=True)
                sys.exit(1)
        else:
            size = random.choice((40, 3000, 70000, 300000))
            held[slot] = (turn, bytes([turn % 251]) * size, list(range(turn % 50)))
    if turn % 20000 == 0:
        gc.collect()
    print("ok", turn, flush=True)
    time.sleep(0.005)
print("done", flush=True)
