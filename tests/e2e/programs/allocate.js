// Allocates and drops objects and buffers all the time, and checks what it holds; tests/e2e/test_programs.py runs it.
'use strict';
const fs = require('fs');
const say = (text) => fs.writeSync(1, text + '\n');
const held = new Map();
let turn = 0;
let seed = 7;
const random = (below) => (seed = (seed * 1103515245 + 12345) & 0x7fffffff) % below;

function step() {
  const slot = random(300);
  const had = held.get(slot);
  if (had) {
    held.delete(slot);
    if (!had.bytes.every((byte) => byte === had.number % 251) || had.list.length !== had.number % 50 || had.text !== `turn ${had.number}`) {
      say(`FAIL slot ${slot} of turn ${had.number}`);
      process.exit(1);
    }
  } else {
    const size = [40, 3000, 20000, 100000][random(4)];
    held.set(slot, {number: turn, bytes: Buffer.alloc(size, turn % 251), list: Array.from({length: turn % 50}, (_, i) => ({i})), text: `turn ${turn}`});
  }
}

setInterval(() => {
  for (let i = 0; i < 20; ++i) {
    ++turn;
    step();
  }
  say(`ok ${turn}`);
}, 5);
process.on('SIGTERM', () => {
  say('done');
  process.exit(0);
});
say('ready');
