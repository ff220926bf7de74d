// @ts-check
/**
 * One websocket connection: it reads frames one after the other, keeps the channels that were
 * joined on it, and answers what belongs to none.
 *
 * The next frame is read when the one before has been dealt with, also when that takes a question
 * to Postgres or the delay of a refusal, so the answers keep the order of the questions.
 */
import { Channel } from './channel.mjs';
import { CLOSE_NORMAL, encodeBroadcast, encodeFrame, parseFrame } from './frames.mjs';
import { joinChannel } from './join.mjs';

const TOPIC_PREFIX = 'realtime:';

/**
 * @typedef {object} Services what a connection needs of the server
 * @property {import('./tenant.mjs').Tenant} tenant
 * @property {import('./presence.mjs').Presence} presence
 * @property {import('./authorization.mjs').Authorization} authorization
 * @property {import('./database.mjs').Database | null} database
 * @property {import('./tail.mjs').Tail | null} tail
 * @property {import('./outage.mjs').Outage} outage
 * @property {import('./options.mjs').Options} options
 * @property {{ stopping: boolean }} state
 */

export class Socket {
  /** @type {Map<string, Channel>} by topic, with its `realtime:` */
  channels = new Map();
  /** Whether the tenant counts this socket among its users: from its first channel on. */
  isCounted = false;
  #ws;
  #idleTimer;
  #turn = Promise.resolve();

  /**
   * @param {import('ws').WebSocket} ws
   * @param {Services} services
   * @param {object} connection
   * @param {import('./frames.mjs').Version} connection.version
   * @param {string} connection.token of the handshake
   * @param {Record<string, unknown>} connection.headers
   */
  constructor(ws, services, { version, token, headers }) {
    this.#ws = ws;
    this.services = services;
    this.version = version;
    this.token = token;
    this.headers = headers;
    this.#idleTimer = setTimeout(() => this.close(CLOSE_NORMAL), services.options.socketIdleMs);
    ws.on('message', (data, isBinary) => this.#enqueue(/** @type {Buffer} */ (data), isBinary));
    ws.on('close', () => this.#closed());
    ws.on('error', () => {}); // A broken frame; `ws` closes the connection.
  }

  get isOpen() {
    return this.#ws.readyState === this.#ws.OPEN;
  }

  /** @param {import('./frames.mjs').Frame} frame */
  send(frame) {
    if (this.isOpen) this.#ws.send(encodeFrame(frame, this.version));
  }

  /**
   * @param {import('./tenant.mjs').Message} message
   * @returns {boolean} false when this version of the protocol cannot carry it
   */
  sendBroadcast({ topic, content }) {
    const encoded = encodeBroadcast(TOPIC_PREFIX + topic, content, this.version);
    if (encoded === null || !this.isOpen) return false;
    this.#ws.send(encoded);
    return true;
  }

  /**
   * @param {import('./frames.mjs').Frame} frame the question
   * @param {'ok' | 'error'} status
   * @param {unknown} [response]
   */
  reply({ joinRef, ref, topic }, status, response = {}) {
    this.send({ joinRef, ref, topic, event: 'phx_reply', payload: { status, response } });
  }

  /** @param {number} code */
  close(code) {
    this.#ws.close(code);
  }

  /** Without a closing handshake, as when a process is killed. */
  drop() {
    this.#ws.terminate();
  }

  /**
   * @param {Buffer} data
   * @param {boolean} isBinary
   */
  #enqueue(data, isBinary) {
    this.#idleTimer.refresh();
    const frame = parseFrame(data, isBinary, this.version);
    if (!frame) return;
    this.#turn = this.#turn
      .then(() => this.services.outage.over())
      .then(() => (this.isOpen ? this.#handle(frame) : undefined))
      .catch((error) => this.#crashed(frame, error));
  }

  /** @param {import('./frames.mjs').Frame} frame */
  async #handle(frame) {
    const { topic, event } = frame;
    if (topic === 'phoenix') return event === 'heartbeat' ? this.reply(frame, 'ok') : undefined;
    if (event === 'phx_join') return this.#join(frame);
    const channel = this.channels.get(topic);
    if (channel) return channel.handle(frame);
    if (event === 'phx_leave') return this.reply(frame, 'ok');
    return this.reply(frame, 'error', { reason: 'unmatched topic' });
  }

  /** @param {import('./frames.mjs').Frame} frame */
  async #join(frame) {
    if (!frame.topic.startsWith(TOPIC_PREFIX)) {
      return this.reply(frame, 'error', { reason: 'unmatched topic' });
    }
    // A second join of a topic takes the place of the first, which hears of it after the answer.
    const previous = this.channels.get(frame.topic);
    previous?.leave();
    await joinChannel(this, frame, frame.topic.slice(TOPIC_PREFIX.length));
    previous?.sayClosed();
  }

  /**
   * A channel whose process dies is joined again by the client.
   *
   * @param {import('./frames.mjs').Frame} frame
   * @param {Error} error
   */
  #crashed({ topic, ref }, error) {
    this.services.options.log(`channel crashed: ${error.stack}`);
    const channel = this.channels.get(topic);
    channel?.leave();
    const joinRef = channel?.joinRef ?? ref;
    this.send({ joinRef, ref: joinRef, topic, event: 'phx_error', payload: {} });
  }

  #closed() {
    clearTimeout(this.#idleTimer);
    for (const channel of this.channels.values()) channel.leave();
    if (this.isCounted) this.services.tenant.users -= 1;
  }
}
