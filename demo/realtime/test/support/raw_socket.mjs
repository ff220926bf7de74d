// @ts-check
/** A websocket without a client library, to see every frame as it comes. */
import WebSocket from 'ws';
import { ANON, waitUntil } from './stage.mjs';

/**
 * @typedef {object} Frame
 * @property {string | null} joinRef
 * @property {string | null} ref
 * @property {string} topic
 * @property {string} event
 * @property {any} payload
 * @property {'text' | 'binary'} form
 */

export class RawSocket {
  /** @type {Frame[]} */
  frames = [];
  /** The code that the server closed with; null while it is open. @type {number | null} */
  closeCode = null;
  #ws;
  #version;
  #ref = 0;

  /**
   * @param {WebSocket} ws
   * @param {1 | 2} version
   */
  constructor(ws, version) {
    this.#ws = ws;
    this.#version = version;
    ws.on('message', (data, isBinary) =>
      this.frames.push(this.#parse(/** @type {Buffer} */ (data), isBinary)),
    );
    ws.on('close', (code) => (this.closeCode = code));
  }

  /**
   * @param {{ url: string }} realtime
   * @param {object} [options]
   * @param {string | null} [options.token]
   * @param {1 | 2} [options.version]
   * @param {string} [options.query] in place of the usual one
   * @param {string} [options.path]
   * @param {Record<string, string>} [options.headers]
   */
  static async open(realtime, options = {}) {
    const { token = ANON, version = 2, path = '/socket/websocket', headers = {} } = options;
    const { query = `?apikey=${token}&vsn=${version}.0.0` } = options;
    const ws = new WebSocket(`${realtime.url.replace('http', 'ws')}${path}${query}`, { headers });
    const socket = new RawSocket(ws, version);
    await new Promise((resolve, reject) => {
      ws.once('open', resolve);
      ws.once('error', reject);
    });
    return socket;
  }

  /**
   * @param {string} topic
   * @param {string} event
   * @param {unknown} payload
   * @param {{ joinRef?: string | null }} [options]
   * @returns {string} its ref
   */
  push(topic, event, payload, { joinRef = null } = {}) {
    this.#ref += 1;
    const ref = String(this.#ref);
    const join_ref = event === 'phx_join' ? ref : joinRef;
    this.sendRaw(
      JSON.stringify(
        this.#version === 2
          ? [join_ref, ref, topic, event, payload]
          : { topic, event, payload, ref, join_ref },
      ),
    );
    return ref;
  }

  /** @param {string | Buffer} data */
  sendRaw(data) {
    this.#ws.send(data);
  }

  /**
   * A broadcast as version 2 sends it, in a binary frame.
   *
   * @param {string} topic
   * @param {string} event
   * @param {Buffer | object} payload bytes, or what becomes JSON
   * @param {string} [joinRef]
   */
  pushUser(topic, event, payload, joinRef = '') {
    this.#ref += 1;
    const isBinary = Buffer.isBuffer(payload);
    const fields = [joinRef, String(this.#ref), topic, event, ''].map((text) => Buffer.from(text));
    const bytes = isBinary ? payload : Buffer.from(JSON.stringify(payload));
    const header = [3, ...fields.map(({ length }) => length), isBinary ? 0 : 1];
    this.sendRaw(Buffer.concat([Buffer.from(header), ...fields, bytes]));
    return String(this.#ref);
  }

  /**
   * Joins, and waits for the answer.
   *
   * @param {string} topic with its `realtime:`
   * @param {Record<string, unknown>} [config]
   * @param {Record<string, unknown>} [payload]
   */
  async join(topic, config = {}, payload = {}) {
    const ref = this.push(topic, 'phx_join', { config, ...payload });
    const { payload: answer } = await this.replyTo(ref);
    return { ref, status: answer.status, response: answer.response };
  }

  /** @param {string} ref */
  replyTo(ref) {
    return this.next(
      (frame) => frame.event === 'phx_reply' && frame.ref === ref, `the reply to ${ref}`);
  }

  /**
   * The first frame that fits, be it here already or yet to come.
   *
   * @param {(frame: Frame) => unknown} fits
   * @param {string} description
   * @returns {Promise<Frame>}
   */
  next(fits, description) {
    const accept = () => this.frames.find(fits) !== undefined;
    return waitUntil(() => this.frames, description, { accept }).then(
      (frames) => /** @type {Frame} */ (frames.find(fits)),
    );
  }

  /** @param {string} event */
  nextEvent(event) {
    return this.next((frame) => frame.event === event, `a frame ${event}`);
  }

  /** @param {string} event */
  framesOf(event) {
    return this.frames.filter((frame) => frame.event === event);
  }

  /** Asks and waits for the answer: what was sent before has been dealt with then. */
  async heartbeat() {
    const { payload } = await this.replyTo(this.push('phoenix', 'heartbeat', {}));
    return payload;
  }

  closed() {
    return waitUntil(() => this.closeCode, 'the server to close the socket');
  }

  close() {
    this.#ws.terminate();
  }

  /**
   * @param {Buffer} data
   * @param {boolean} isBinary
   * @returns {Frame}
   */
  #parse(data, isBinary) {
    if (isBinary) return parseUserBroadcast(data);
    const value = JSON.parse(data.toString());
    const [joinRef, ref, topic, event, payload] =
      this.#version === 2
        ? value
        : [value.join_ref, value.ref, value.topic, value.event, value.payload];
    return { joinRef, ref, topic, event, payload, form: 'text' };
  }
}

/**
 * @param {Buffer} data
 * @returns {Frame}
 */
function parseUserBroadcast(data) {
  const [kind, topicLength, eventLength, metaLength, encoding] = data;
  if (kind !== 4) throw new Error(`a binary frame of kind ${kind}`);
  let offset = 5;
  const take = (/** @type {number} */ length) => data.subarray(offset, (offset += length));
  const [topic, event, meta] = [topicLength, eventLength, metaLength].map((length) =>
    take(length).toString(),
  );
  const bytes = data.subarray(offset);
  const payload = encoding === 1 ? JSON.parse(bytes.toString()) : bytes;
  const content = { type: 'broadcast', event, payload, ...(meta && { meta: JSON.parse(meta) }) };
  return { joinRef: null, ref: null, topic, event: 'broadcast', payload: content, form: 'binary' };
}
