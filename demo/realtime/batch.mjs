// @ts-check
/**
 * The check of a batch: all of its messages or none. A refused batch is answered with one object
 * for each message, empty for the good ones.
 */
import { isTooLarge, payloadSize } from './payload_size.mjs';

const BLANK = "can't be blank";
const INVALID = 'is invalid';
const TOO_LARGE = 'Payload size exceeds tenant limit';

/**
 * @typedef {object} BatchMessage
 * @property {string} topic
 * @property {string} event
 * @property {Record<string, unknown>} payload
 * @property {boolean} isPrivate
 * @property {string} [id]
 *
 * @typedef {Record<string, string[]>} Complaints
 */

/**
 * @param {any} messages as they came
 * @param {number | null} payloadKb
 * @returns {{ messages: BatchMessage[], errors?: undefined }
 *   | { messages?: undefined, errors: string[] | Complaints[] }}
 */
export function checkBatch(messages, payloadKb) {
  if (messages === undefined) return { errors: [BLANK] };
  const list = listOf(messages);
  if (!list || !list.every(isObject)) return { errors: [INVALID] };
  if (list.length === 0) return { errors: [BLANK] };
  const complaints = list.map((message) => check(message, payloadKb));
  if (complaints.some((found) => Object.keys(found).length > 0)) return { errors: complaints };
  return { messages: list.map(toMessage) };
}

/**
 * @param {any} message
 * @param {number | null} payloadKb
 * @returns {Complaints}
 */
function check({ topic, event, payload, private: isPrivate, id }, payloadKb) {
  /** @type {Record<string, string | null>} */
  const found = {
    topic: checkText(topic),
    event: checkText(event),
    payload: checkPayload(payload, payloadKb),
    private: isPrivate == null || readBoolean(isPrivate) !== undefined ? null : INVALID,
    id: id == null || typeof id === 'string' ? null : INVALID,
  };
  return Object.fromEntries(
    Object.entries(found).flatMap(([field, error]) => (error === null ? [] : [[field, [error]]])),
  );
}

/** @param {any} message that has been checked */
function toMessage({ topic, event, payload, private: isPrivate, id }) {
  return { topic, event, payload, isPrivate: readBoolean(isPrivate) ?? false, id: id || undefined };
}

/** @param {unknown} value */
function checkText(value) {
  if (value == null) return BLANK;
  if (typeof value !== 'string') return INVALID;
  return value.trim() === '' ? BLANK : null;
}

/**
 * @param {unknown} payload
 * @param {number | null} limitKb
 */
function checkPayload(payload, limitKb) {
  if (payload == null) return BLANK;
  if (!isObject(payload)) return INVALID;
  return limitKb !== null && isTooLarge(payloadSize(payload), limitKb) ? TOO_LARGE : null;
}

/**
 * An object counts as the list of its values, in the order of its keys where they are numbers.
 *
 * @param {unknown} messages
 * @returns {any[] | null}
 */
function listOf(messages) {
  if (Array.isArray(messages)) return messages;
  return isObject(messages) ? Object.values(messages) : null;
}

/** @param {unknown} value */
function readBoolean(value) {
  if (value === true || value === 'true' || value === '1') return true;
  if (value === false || value === 'false' || value === '0') return false;
  return undefined;
}

/**
 * @param {unknown} value
 * @returns {value is Record<string, unknown>}
 */
const isObject = (value) => value !== null && typeof value === 'object' && !Array.isArray(value);
