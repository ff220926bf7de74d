// @ts-check
/**
 * Failing on purpose, for those who test what they do then: a server that takes requests and does
 * not answer, or that answers every request with one status, as a gateway does in front of it.
 */
export class Outage {
  /** Every HTTP request is answered with this, while it is set. @type {number | null} */
  status = null;
  /** @type {Promise<void> | null} */
  #silence = null;
  #end = () => {};

  get isSilent() {
    return this.#silence !== null;
  }

  begin() {
    this.#silence ??= new Promise((resolve) => (this.#end = resolve));
  }

  end() {
    this.#end();
    this.#silence = null;
  }

  /** Resolves at once, or when the silence ends. */
  async over() {
    while (this.#silence) await this.#silence;
  }
}
