// @ts-check
/**
 * Presence: who says to be on a topic. A channel tracks one payload under its key; a key may be
 * shared by many channels.
 *
 * Changes are gathered for a moment and sent as one diff to all who may read presence there.
 */
import { randomBytes } from 'node:crypto';

/**
 * @typedef {Record<string, unknown> & { phx_ref: string }} Meta
 * @typedef {Record<string, { metas: Meta[] }>} State
 * @typedef {{ key: string, meta: Meta }} Entry
 *
 * @typedef {object} Room one topic
 * @property {Map<import('./channel.mjs').Channel, Entry>} present
 * @property {Entry[]} joins not yet announced
 * @property {Entry[]} leaves
 * @property {NodeJS.Timeout | null} timer
 */

export class Presence {
  #tenant;
  /** @type {Map<string, Room>} */
  #rooms = new Map();

  /** @param {import('./tenant.mjs').Tenant} tenant */
  constructor(tenant) {
    this.#tenant = tenant;
  }

  /** Counts one presence message; false when there are too many. */
  admit() {
    const { limits, counters } = this.#tenant;
    const limit = limits.presenceEventsPerSecond;
    if (limit !== null && counters.presence.average > limit) return false;
    counters.presence.add();
    return true;
  }

  /**
   * @param {import('./tenant.mjs').Address} address
   * @returns {State}
   */
  stateOf(address) {
    return group([...(this.#rooms.get(keyOf(address))?.present.values() ?? [])]);
  }

  /**
   * @param {import('./channel.mjs').Channel} channel
   * @param {Record<string, unknown>} payload
   */
  track(channel, payload) {
    const room = this.#roomOf(channel);
    const before = room.present.get(channel);
    if (before && isSame(before.meta, payload)) return;
    const previous = before && { phx_ref_prev: before.meta.phx_ref };
    const meta = { ...payload, ...previous, phx_ref: randomBytes(12).toString('base64url') };
    const entry = { key: channel.config.presence.key, meta };
    room.present.set(channel, entry);
    room.joins.push(entry);
    if (before) room.leaves.push(before);
    this.#announceSoon(channel, room);
  }

  /** @param {import('./channel.mjs').Channel} channel */
  untrack(channel) {
    const room = this.#rooms.get(keyOf(channel));
    const before = room?.present.get(channel);
    if (!room || !before) return;
    room.present.delete(channel);
    room.leaves.push(before);
    this.#announceSoon(channel, room);
  }

  close() {
    for (const { timer } of this.#rooms.values()) if (timer) clearTimeout(timer);
    this.#rooms.clear();
  }

  /** @param {import('./tenant.mjs').Address} address */
  #roomOf(address) {
    const key = keyOf(address);
    const known = this.#rooms.get(key);
    if (known) return known;
    /** @type {Room} */
    const room = { present: new Map(), joins: [], leaves: [], timer: null };
    this.#rooms.set(key, room);
    return room;
  }

  /**
   * @param {import('./tenant.mjs').Address} address
   * @param {Room} room
   */
  #announceSoon({ topic, isPrivate }, room) {
    room.timer ??= setTimeout(() => {
      const diff = { joins: group(room.joins), leaves: group(room.leaves) };
      room.joins = [];
      room.leaves = [];
      room.timer = null;
      if (room.present.size === 0) this.#rooms.delete(keyOf({ topic, isPrivate }));
      for (const channel of this.#tenant.listenersOf({ topic, isPrivate })) {
        if (channel.mayReadPresence) channel.push('presence_diff', diff);
      }
    }, this.#tenant.options.presenceDiffMs);
  }
}

/** @param {import('./tenant.mjs').Address} address */
const keyOf = ({ topic, isPrivate }) => `${isPrivate ? 'private' : 'public'}:${topic}`;

/**
 * @param {Entry[]} entries
 * @returns {State}
 */
function group(entries) {
  /** @type {State} */
  const state = {};
  for (const { key, meta } of entries) (state[key] ??= { metas: [] }).metas.push(meta);
  return state;
}

/**
 * @param {Meta} meta
 * @param {Record<string, unknown>} payload
 */
function isSame({ phx_ref: _, phx_ref_prev: __, ...tracked }, payload) {
  return JSON.stringify(tracked) === JSON.stringify(payload);
}
