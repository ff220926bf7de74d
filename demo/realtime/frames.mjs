// @ts-check
/**
 * Frames of the socket: text of protocol version 1 (objects) and 2 (arrays), and the two binary
 * kinds that version 2 adds for broadcasts. Nothing here knows of channels or sends anything.
 *
 * A version 1 socket cannot carry binary payloads; a version 2 socket receives as binary what was
 * not text on its way in.
 */

/**
 * @typedef {1 | 2} Version
 *
 * @typedef {object} Frame
 * @property {string | null} joinRef
 * @property {string | null} ref
 * @property {string} topic with its `realtime:`
 * @property {string} event
 * @property {any} payload
 * @property {UserContent} [user] a broadcast that came as binary, in place of the payload
 *
 * @typedef {object} TextContent a payload that is passed on verbatim
 * @property {'text'} form
 * @property {any} payload
 *
 * @typedef {object} UserContent an event and its payload as bytes
 * @property {'user'} form
 * @property {string} event
 * @property {boolean} isBinary the bytes are JSON unless they are binary
 * @property {Uint8Array} bytes
 * @property {Record<string, unknown>} [meta]
 *
 * @typedef {TextContent | UserContent} Content
 */

/** Close codes of RFC 6455. */
export const CLOSE_NORMAL = 1000;
export const CLOSE_GOING_AWAY = 1001;
export const CLOSE_SERVICE_RESTART = 1012;

const KIND_USER_PUSH = 3;
const KIND_USER_BROADCAST = 4;
const USER_PUSH_HEADER_BYTES = 7;
const ENCODING_BINARY = 0;
const ENCODING_JSON = 1;
/** Lengths in a binary frame are one byte. */
const FIELD_BYTES_MAX = 255;

/**
 * @param {Buffer} data
 * @param {boolean} isBinary
 * @param {Version} version
 * @returns {Frame | null} null for what is no frame, which the server ignores
 */
export function parseFrame(data, isBinary, version) {
  try {
    if (isBinary) return version === 2 ? parseUserPush(data) : null;
    return parseText(data.toString('utf8'), version);
  } catch {
    return null;
  }
}

/**
 * @param {string} text
 * @param {Version} version
 * @returns {Frame | null}
 */
function parseText(text, version) {
  const value = JSON.parse(text);
  if (version === 2 ? !Array.isArray(value) : value === null || Array.isArray(value)) return null;
  const [joinRef, ref, topic, event, payload] =
    version === 2
      ? value
      : [value.join_ref, value.ref, value.topic, value.event, value.payload];
  if (typeof topic !== 'string' || typeof event !== 'string') return null;
  return { joinRef: joinRef ?? null, ref: ref ?? null, topic, event, payload };
}

/**
 * @param {Buffer} data
 * @returns {Frame | null}
 */
function parseUserPush(data) {
  if (data[0] !== KIND_USER_PUSH || data.length < USER_PUSH_HEADER_BYTES) return null;
  let offset = USER_PUSH_HEADER_BYTES;
  const take = (/** @type {number} */ length) => {
    offset += length;
    return data.toString('utf8', offset - length, offset);
  };
  const [joinRef, ref, topic, event] = [...data.subarray(1, 5)].map(take);
  take(data[5]); // The metadata, which the server does not use.
  if (offset > data.length) return null;
  return {
    joinRef: joinRef || null,
    ref: ref || null,
    topic,
    event: 'broadcast',
    payload: null,
    user: {
      form: 'user',
      event,
      isBinary: data[6] === ENCODING_BINARY,
      bytes: data.subarray(offset),
    },
  };
}

/**
 * @param {Frame} frame
 * @param {Version} version
 */
export function encodeFrame({ joinRef, ref, topic, event, payload }, version) {
  return JSON.stringify(
    version === 2 ? [joinRef, ref, topic, event, payload] : { topic, event, payload, ref },
  );
}

/**
 * A message is encoded once for all who receive it.
 *
 * @type {WeakMap<Content, Map<Version, string | Buffer | null>>}
 */
const encoded = new WeakMap();

/**
 * @param {string} topic with its `realtime:`; always the same for one content
 * @param {Content} content
 * @param {Version} version
 * @returns {string | Buffer | null} null where the version cannot carry it
 * @throws {RangeError} when topic or event do not fit into a binary frame
 */
export function encodeBroadcast(topic, content, version) {
  const versions = encoded.get(content) ?? new Map();
  if (!versions.has(version)) {
    versions.set(version, encodeContent(topic, content, version));
    encoded.set(content, versions);
  }
  return versions.get(version);
}

/**
 * @param {string} topic
 * @param {Content} content
 * @param {Version} version
 */
function encodeContent(topic, content, version) {
  if (content.form === 'user' && version === 2) return encodeUserBroadcast(topic, content);
  const payload = content.form === 'text' ? content.payload : payloadOf(content);
  if (payload === null) return null;
  return encodeFrame({ joinRef: null, ref: null, topic, event: 'broadcast', payload }, version);
}

/** @param {UserContent} content */
function payloadOf({ event, isBinary, bytes, meta }) {
  if (isBinary) return null;
  try {
    const payload = JSON.parse(Buffer.from(bytes).toString('utf8'));
    return { type: 'broadcast', event, payload, ...(meta && { meta }) };
  } catch {
    return null;
  }
}

/**
 * @param {string} topic
 * @param {UserContent} content
 */
function encodeUserBroadcast(topic, { event, isBinary, bytes, meta }) {
  const fields = [topic, event, meta ? JSON.stringify(meta) : ''].map((text) => Buffer.from(text));
  if (fields.some(({ length }) => length > FIELD_BYTES_MAX)) {
    throw new RangeError(`topic and event of a binary frame have at most ${FIELD_BYTES_MAX} bytes`);
  }
  const encoding = isBinary ? ENCODING_BINARY : ENCODING_JSON;
  const header = [KIND_USER_BROADCAST, ...fields.map(({ length }) => length), encoding];
  return Buffer.concat([Uint8Array.from(header), ...fields, bytes]);
}
