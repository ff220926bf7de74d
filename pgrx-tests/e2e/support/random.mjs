// @ts-check
/**
 * Random choices that can be made again. The seed is printed when a run begins; SEED= replays it.
 */

/** @typedef {ReturnType<typeof randomFrom>} Random */

/** The seed that SEED names, or a new one. */
export function seedOfThisRun() {
  const { SEED } = process.env;
  const seed = SEED === undefined ? Math.floor(Math.random() * 2 ** 31) : Number(SEED);
  if (!Number.isInteger(seed)) throw new Error(`SEED=${SEED} is not a whole number`);
  console.log(`SEED=${seed} replays this run`);
  return seed;
}

/**
 * Mulberry32: small, fast, and good enough to choose with.
 *
 * @param {number} seed
 */
export function randomFrom(seed) {
  let state = seed >>> 0;
  const next = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
  return {
    /** A whole number from 0 up to, and not with, `end`. */
    below: (/** @type {number} */ end) => Math.floor(next() * end),
    /** True in `percent` of a hundred cases. */
    chance: (/** @type {number} */ percent) => next() * 100 < percent,
    /** @template T @param {readonly T[]} choices @returns {T} */
    pick: (choices) => choices[Math.floor(next() * choices.length)],
    /** A generator of its own, for a part that must not depend on how others are interleaved. */
    fork: () => randomFrom(Math.floor(next() * 2 ** 32)),
  };
}
