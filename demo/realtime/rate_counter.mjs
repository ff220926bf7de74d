// @ts-check
/**
 * A rate as Realtime sees it: what happened is counted in buckets, and the average over the buckets
 * that there are is computed only when one closes.
 *
 * So it is late by up to a bucket, a fresh counter reacts more sharply than an old one, and a burst
 * weighs until its bucket has left the window. No timer: buckets close when somebody looks.
 */

/** A counter that nobody has fed for this long starts afresh. */
const IDLE_MS = 5 * 60_000;

export class RateCounter {
  #clock;
  #bucketMs;
  #bucketsMax;
  /** @type {number[]} newest first; a fresh counter has closed one empty bucket */
  #buckets = [0];
  #open = 0;
  #openedAt;
  #fedAt;

  /**
   * @param {object} options
   * @param {() => number} options.clock milliseconds that never go back
   * @param {number} options.bucketMs
   * @param {number} options.bucketsMax
   */
  constructor({ clock, bucketMs, bucketsMax }) {
    this.#clock = clock;
    this.#bucketMs = bucketMs;
    this.#bucketsMax = bucketsMax;
    this.#openedAt = this.#fedAt = clock();
  }

  add(count = 1) {
    this.#closeBuckets();
    this.#open += count;
    this.#fedAt = this.#clock();
  }

  /** Per second, as of the last bucket that closed. */
  get average() {
    this.#closeBuckets();
    const sum = this.#buckets.reduce((total, count) => total + count, 0);
    return sum / this.#buckets.length / (this.#bucketMs / 1000);
  }

  reset() {
    this.#buckets = [0];
    this.#open = 0;
    this.#openedAt = this.#fedAt = this.#clock();
  }

  #closeBuckets() {
    const now = this.#clock();
    if (now - this.#fedAt > IDLE_MS) return this.reset();
    while (now - this.#openedAt >= this.#bucketMs) {
      this.#buckets = [this.#open, ...this.#buckets].slice(0, this.#bucketsMax);
      this.#open = 0;
      this.#openedAt += this.#bucketMs;
    }
  }
}
