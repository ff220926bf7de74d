// @ts-check
/**
 * The one tenant of the stand-in: its limits and its counters, and who listens to what.
 *
 * A public and a private channel of one name are two. Delivering costs the tenant's budget as
 * sending does, and a receiver that finds the budget overrun is closed: so a flood of one sender
 * can close the channels of all listeners.
 */
import { completeLimits } from './options.mjs';
import { RateCounter } from './rate_counter.mjs';

const EVENT_BUCKETS = { bucketMs: 5_000, bucketsMax: 12 };
const OTHER_BUCKETS = { bucketMs: 1_000, bucketsMax: 60 };

/**
 * @typedef {object} Address
 * @property {string} topic without the `realtime:` of the sockets
 * @property {boolean} isPrivate
 *
 * @typedef {Address & { content: import('./frames.mjs').Content, id?: string }} Message
 */

export class Tenant {
  suspended = false;
  /** @type {Map<string, Set<import('./channel.mjs').Channel>>} */
  #listeners = new Map();
  /** Sockets that have had a channel. */
  users = 0;

  /** @param {import('./options.mjs').Options} options */
  constructor(options) {
    const { clock } = options;
    this.options = options;
    this.limits = options.limits;
    this.counters = {
      events: new RateCounter({ clock, ...EVENT_BUCKETS }),
      requests: new RateCounter({ clock, ...OTHER_BUCKETS }),
      joins: new RateCounter({ clock, ...OTHER_BUCKETS }),
      presence: new RateCounter({ clock, ...OTHER_BUCKETS }),
    };
    /** Since the start, for whoever measures. */
    this.totals = { requests: 0, messages: 0, deliveries: 0, refusals: 0 };
  }

  /**
   * Editing a tenant restarts its counters.
   *
   * @param {Partial<import('./options.mjs').Limits>} changes
   */
  setLimits(changes) {
    this.limits = completeLimits({ ...this.limits, ...changes });
    for (const counter of Object.values(this.counters)) counter.reset();
  }

  /**
   * Whether the tenant is the one that a request's Host names by its first label.
   *
   * @param {string | undefined} host
   */
  isNamedBy(host) {
    const name = (host ?? '').replace(/:\d+$/, '');
    if (name.split('.', 1)[0] === this.options.tenantId) return true;
    return !this.options.strictHost && isLoopback(name);
  }

  get isOverrun() {
    const { eventsPerSecond } = this.limits;
    return eventsPerSecond !== null && this.counters.events.average >= eventsPerSecond;
  }

  get channelCount() {
    let count = 0;
    for (const channels of this.#listeners.values()) count += channels.size;
    return count;
  }

  /** @param {import('./channel.mjs').Channel} channel */
  subscribe(channel) {
    const key = keyOf(channel);
    const channels = this.#listeners.get(key) ?? new Set();
    this.#listeners.set(key, channels.add(channel));
  }

  /** @param {import('./channel.mjs').Channel} channel */
  unsubscribe(channel) {
    const key = keyOf(channel);
    const channels = this.#listeners.get(key);
    if (channels?.delete(channel) && channels.size === 0) this.#listeners.delete(key);
  }

  /** @param {Address} address */
  listenersOf(address) {
    return [...(this.#listeners.get(keyOf(address)) ?? [])];
  }

  /**
   * Counts a message and hands it to those who listen.
   *
   * @param {Message} message
   * @param {{ except?: import('./channel.mjs').Channel }} [options] who sent it and wants no echo
   */
  broadcast(message, { except } = {}) {
    this.counters.events.add();
    this.totals.messages += 1;
    for (const channel of this.#listeners.get(keyOf(message)) ?? []) {
      if (channel !== except && channel.receive(message)) this.totals.deliveries += 1;
    }
  }
}

/** @param {Address} address */
const keyOf = ({ topic, isPrivate }) => `${isPrivate ? 'private' : 'public'}:${topic}`;

/** @param {string} name */
function isLoopback(name) {
  return /^(localhost|.*\.localhost|127(\.\d+){3}|\[::1\])$/.test(name);
}
