// @ts-check
/**
 * A joined channel: what its client pushes, what it receives, and the token that it stands on.
 *
 * It is closed by the client's leave, by a token that no longer serves, and by a tenant that is
 * overrun. A close by the server is preceded by a `system` message with the reason.
 */
import { DatabaseError } from './database.mjs';
import { binarySize, isTooLarge, payloadSize } from './payload_size.mjs';
import { describeFlaw } from './refusals.mjs';
import { readToken } from './tokens.mjs';

/**
 * @typedef {object} Granted what a join obtained
 * @property {string} token
 * @property {import('./tokens.mjs').Claims} claims
 * @property {Set<import('./authorization.mjs').Extension>} readable
 * @property {Set<string>} replayedIds
 */

const TOKEN_DATABASE_TROUBLE = 'Realtime was unable to connect to the project database';

export class Channel {
  #socket;
  #services;
  /** @type {NodeJS.Timeout | undefined} */
  #tokenTimer;
  /** @type {Map<import('./authorization.mjs').Extension, boolean>} asked once for each token */
  #writable = new Map();
  #presenceWindow = { calls: 0, endsAt: -Infinity };

  /**
   * @param {import('./socket.mjs').Socket} socket
   * @param {object} identity
   * @param {string} identity.topic without `realtime:`
   * @param {string | null} identity.joinRef
   * @param {import('./join.mjs').Config} config
   * @param {Granted} granted
   */
  constructor(socket, { topic, joinRef }, config, { token, claims, readable, replayedIds }) {
    this.#socket = socket;
    this.#services = socket.services;
    this.topic = topic;
    this.joinRef = joinRef;
    this.config = config;
    this.isPrivate = config.isPrivate;
    this.token = token;
    this.claims = claims;
    this.readable = readable;
    this.replayedIds = replayedIds;
    this.presenceEnabled = config.presence.enabled;
    this.#armTokenTimer();
  }

  get wireTopic() {
    return `realtime:${this.topic}`;
  }

  /** Who asks, for the policies. */
  get caller() {
    return { topic: this.topic, claims: this.claims, headers: this.#socket.headers };
  }

  /** Registers the channel; from here on it receives. */
  enter() {
    this.#socket.channels.set(this.wireTopic, this);
    this.#services.tenant.subscribe(this);
  }

  /** Takes the channel away without a word. */
  leave() {
    clearTimeout(this.#tokenTimer);
    this.#services.tenant.unsubscribe(this);
    this.#services.presence.untrack(this);
    const { channels } = this.#socket;
    if (channels.get(this.wireTopic) === this) channels.delete(this.wireTopic);
  }

  get isJoined() {
    return this.#socket.channels.get(this.wireTopic) === this;
  }

  sayClosed() {
    const { joinRef, wireTopic: topic } = this;
    this.#socket.send({ joinRef, ref: joinRef, topic, event: 'phx_close', payload: {} });
  }

  /**
   * @param {string} event
   * @param {unknown} payload
   */
  push(event, payload) {
    const { joinRef, wireTopic: topic } = this;
    this.#socket.send({ joinRef, ref: null, topic, event, payload });
  }

  /**
   * @param {'ok' | 'error'} status
   * @param {string} message
   * @param {string} [extension]
   */
  pushSystem(status, message, extension = 'system') {
    this.push('system', { extension, status, message, channel: this.topic });
  }

  /** @param {string} message why */
  shutDown(message) {
    if (!this.isJoined) return;
    this.pushSystem('error', message);
    this.leave();
    this.sayClosed();
    this.#services.options.log(`channel ${this.topic} closed: ${message}`);
  }

  /**
   * A broadcast arrives. It costs the tenant's budget; one that is overrun closes the channel.
   *
   * @param {import('./tenant.mjs').Message} message
   * @returns {boolean} whether it was passed on
   */
  receive(message) {
    if (this.isPrivate && !this.readable.has('broadcast')) return false;
    if (message.id && this.replayedIds.has(message.id)) return false;
    const isSent = this.#socket.sendBroadcast(message);
    this.#services.tenant.counters.events.add();
    if (this.#services.tenant.isOverrun) this.shutDown('Too many messages per second');
    return isSent;
  }

  /** @param {import('./frames.mjs').Frame} frame */
  async handle(frame) {
    switch (frame.event) {
      case 'phx_leave':
        this.leave();
        this.#socket.reply(frame, 'ok');
        return this.sayClosed();
      case 'broadcast':
        return this.#broadcast(frame);
      case 'presence':
        return this.#trackPresence(frame);
      case 'access_token':
        return this.#replaceToken(frame.payload?.access_token);
      default: // Counted, and otherwise ignored.
        return this.#services.tenant.counters.events.add();
    }
  }

  /** @param {import('./frames.mjs').Frame} frame */
  async #broadcast(frame) {
    // Not even an acknowledgement tells the client that it may not write.
    if (!(await this.#mayWrite('broadcast'))) return;
    const { tenant } = this.#services;
    const { payloadKb } = tenant.limits;
    const size = frame.user ? binarySize(frame.user.bytes) : payloadSize(frame.payload);
    const { ack, self } = this.config.broadcast;
    if (payloadKb !== null && isTooLarge(size, payloadKb)) {
      tenant.counters.events.add();
      if (ack) this.#socket.reply(frame, 'error', 'payload_size_exceeded');
      return;
    }
    const content = frame.user ?? { form: 'text', payload: frame.payload };
    const { topic, isPrivate } = this;
    tenant.broadcast({ topic, isPrivate, content }, { except: self ? undefined : this });
    if (ack) this.#socket.reply(frame, 'ok');
  }

  /** @param {import('./authorization.mjs').Extension} extension */
  async #mayWrite(extension) {
    if (!this.isPrivate) return true;
    const known = this.#writable.get(extension);
    if (known !== undefined) return known;
    try {
      const answer = await this.#services.authorization.mayWrite(this.caller, extension);
      this.#writable.set(extension, answer);
      return answer;
    } catch (error) {
      if (!(error instanceof DatabaseError)) throw error;
      this.#services.options.log(`no permission to write on ${this.topic}: ${error.message}`);
      return false;
    }
  }

  /** @param {import('./frames.mjs').Frame} frame */
  async #trackPresence(frame) {
    const { event, payload = {} } = frame.payload ?? {};
    if (typeof event !== 'string') return this.#socket.reply(frame, 'ok');
    if (!this.#countPresenceCall()) return this.shutDown('Client presence rate limit exceeded');
    const { presence, tenant } = this.#services;
    if (event.toLowerCase() === 'untrack') {
      presence.untrack(this);
      return this.#socket.reply(frame, 'ok');
    }
    const isTrack = event.toLowerCase() === 'track';
    if (!isTrack || !(await this.#mayWrite('presence'))) return this.#socket.reply(frame, 'error');
    if (payload === null || typeof payload !== 'object' || Array.isArray(payload)) {
      const reason = 'Presence track payload must be a map';
      return this.#socket.reply(frame, 'error', { reason });
    }
    const { payloadKb } = tenant.limits;
    if (payloadKb !== null && isTooLarge(payloadSize(payload), payloadKb)) {
      return this.shutDown('Track message size exceeded');
    }
    if (!presence.admit()) return this.shutDown('Too many presence messages per second');
    await this.#enablePresence();
    presence.track(this, payload);
    this.#socket.reply(frame, 'ok');
  }

  /** Tracking enables presence for a channel that joined without. */
  async #enablePresence() {
    if (this.presenceEnabled) return;
    if (this.isPrivate) {
      const allowed = await this.#services.authorization.readable(this.caller, ['presence']);
      for (const extension of allowed) this.readable.add(extension);
    }
    this.presenceEnabled = true;
    this.syncPresence();
  }

  get mayReadPresence() {
    return !this.isPrivate || this.readable.has('presence');
  }

  syncPresence() {
    const { presence } = this.#services;
    if (!this.presenceEnabled || !this.mayReadPresence) return;
    if (!presence.admit()) return this.shutDown('Too many presence messages per second');
    this.push('presence_state', presence.stateOf(this));
  }

  /** A few calls in each window; the first one opens it. */
  #countPresenceCall() {
    const { tenant, options } = this.#services;
    const { presenceCallsPerWindow: callsMax, presenceWindowMs } = tenant.limits;
    const now = options.clock();
    if (now > this.#presenceWindow.endsAt) {
      this.#presenceWindow = { calls: 0, endsAt: now + presenceWindowMs };
    }
    this.#presenceWindow.calls += 1;
    return callsMax === null || this.#presenceWindow.calls <= callsMax;
  }

  /** @param {unknown} token */
  async #replaceToken(token) {
    if (typeof token !== 'string' || token.startsWith('sb_') || token === this.token) return;
    const reading = readToken(token, this.#services.options.jwtSecret);
    if (reading.flaw) return this.shutDown(describeFlaw(reading).pushed);
    this.token = token;
    this.claims = reading.claims;
    this.#writable.clear();
    this.#armTokenTimer();
    if (this.isPrivate) await this.#readAgain();
  }

  /** Whoever loses what the old token could read loses the channel. */
  async #readAgain() {
    const before = this.readable;
    try {
      const extensions = extensionsOf(this.presenceEnabled);
      this.readable = await this.#services.authorization.readable(this.caller, extensions);
    } catch (error) {
      if (!(error instanceof DatabaseError)) throw error;
      return this.shutDown(
        error.trouble === 'RlsPolicyError' ? denial(this.topic) : TOKEN_DATABASE_TROUBLE,
      );
    }
    if (this.readable.size === 0) return this.shutDown(denial(this.topic));
    if ([...before].some((extension) => !this.readable.has(extension))) {
      this.shutDown(`You no longer have permission to read from this Channel topic: ${this.topic}`);
    }
  }

  #armTokenTimer() {
    clearTimeout(this.#tokenTimer);
    const untilExpiryMs = this.claims.exp * 1000 - Date.now();
    const delayMs = Math.max(0, Math.min(untilExpiryMs, this.#services.options.tokenCheckMs));
    this.#tokenTimer = setTimeout(() => this.#checkToken(), delayMs);
  }

  #checkToken() {
    const reading = readToken(this.token, this.#services.options.jwtSecret);
    if (reading.flaw) return this.shutDown(describeFlaw(reading).pushed);
    this.#armTokenTimer();
  }
}

/** @param {string} topic */
export const denial = (topic) =>
  `You do not have permissions to read from this Channel topic: ${topic}`;

/**
 * Presence is asked about only where it is used.
 *
 * @param {boolean} presenceEnabled
 * @returns {import('./authorization.mjs').Extension[]}
 */
export const extensionsOf = (presenceEnabled) =>
  presenceEnabled ? ['broadcast', 'presence'] : ['broadcast'];
