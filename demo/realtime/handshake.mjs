// @ts-check
/**
 * Opening a websocket: who may not is answered with plain HTTP in place of the upgrade, after a
 * delay that slows down clients that try again and again.
 */
import { STATUS_CODES } from 'node:http';
import { setTimeout as pause } from 'node:timers/promises';
import { WebSocketServer } from 'ws';
import { readUrl } from './http.mjs';
import { describeFlaw } from './refusals.mjs';
import { Socket } from './socket.mjs';
import { readToken } from './tokens.mjs';

const FRAME_BYTES_MAX = 5_000_000;
const PATH = '/socket/websocket';

/**
 * @param {import('node:http').Server} server
 * @param {import('./socket.mjs').Services} services
 * @returns {Set<Socket>} the open ones
 */
export function acceptSockets(server, services) {
  const { outage, options } = services;
  const sockets = new Set();
  const acceptor = new WebSocketServer({ noServer: true, maxPayload: FRAME_BYTES_MAX });
  server.on('upgrade', async (request, stream, head) => {
    stream.on('error', () => {}); // The client went away.
    await outage.over();
    const { url } = readUrl(request);
    if (outage.status) return refuse(stream, { status: outage.status });
    if (url.pathname !== PATH) return refuse(stream, { status: 404 });
    const version = readVersion(url.searchParams.get('vsn'));
    if (!version) return refuse(stream, { status: 403 });
    const token = tokenOf(request, url);
    const refusal = check(request, token, services);
    if (refusal) {
      options.log(`socket refused: ${refusal.error}`);
      await pause(options.handshakeErrorDelayMs, undefined, { ref: false });
      return refuse(stream, refusal);
    }
    acceptor.handleUpgrade(request, stream, head, (ws) => {
      const headers = xHeaders(request);
      const socket = new Socket(ws, services, { version, token: String(token), headers });
      sockets.add(socket);
      ws.on('close', () => sockets.delete(socket));
    });
  });
  return sockets;
}

/**
 * @param {string | null} vsn
 * @returns {import('./frames.mjs').Version | null}
 */
function readVersion(vsn) {
  if (vsn === null || /^1\.0\.\d+$/.test(vsn)) return 1;
  return /^2\.0\.\d+$/.test(vsn) ? 2 : null;
}

/**
 * @param {import('node:http').IncomingMessage} request
 * @param {URL} url
 */
const tokenOf = (request, url) =>
  request.headers['x-api-key']?.toString() ?? url.searchParams.get('apikey');

/**
 * @param {import('node:http').IncomingMessage} request
 * @param {string | null} token
 * @param {import('./socket.mjs').Services} services
 * @returns {{ status: number, error: string } | null}
 */
function check(request, token, { tenant, options }) {
  const { limits, counters } = tenant;
  if (!tenant.isNamedBy(request.headers.host)) return { status: 404, error: 'Tenant not found' };
  if (tenant.suspended) return { status: 403, error: 'Tenant is suspended' };
  if (!token) return { status: 401, error: 'API key is missing' };
  const reading = readToken(token, options.jwtSecret);
  if (reading.flaw) return { status: 401, error: describeFlaw(reading).handshake };
  if (limits.sockets !== null && tenant.users >= limits.sockets) {
    return { status: 429, error: 'Too many connected users' };
  }
  if (limits.joinsPerSecond !== null && counters.joins.average >= limits.joinsPerSecond) {
    return { status: 429, error: 'Too many joins per second' };
  }
  return null;
}

/**
 * What policies see as request.headers.
 *
 * @param {import('node:http').IncomingMessage} request
 */
const xHeaders = (request) =>
  Object.fromEntries(Object.entries(request.headers).filter(([name]) => name.startsWith('x-')));

/**
 * @param {import('node:stream').Duplex} stream
 * @param {{ status: number, error?: string }} refusal
 */
function refuse(stream, { status, error }) {
  const body = error === undefined ? '' : JSON.stringify({ error });
  stream.end(
    `HTTP/1.1 ${status} ${STATUS_CODES[status]}\r\n` +
      'connection: close\r\n' +
      'content-type: application/json; charset=utf-8\r\n' +
      `content-length: ${Buffer.byteLength(body)}\r\n\r\n${body}`,
  );
}
