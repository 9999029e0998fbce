// Let the search work when the pages are opened as files, from which browsers start no worker: its
// script runs in an empty frame, which has the page's own origin. Nothing changes on a server.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.onmessage = null;
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.documentElement.append(frame);
      const inside = frame.contentWindow;
      inside.importScripts = (...urls) =>
        Promise.all(urls.map((each) => this.run(inside, each)));
      inside.postMessage = (data) => this.deliver(this, data);
      this.ready = this.run(inside, url);
      this.inside = inside;
    }

    run(inside, url) {
      const script = inside.document.createElement("script");
      script.src = new URL(url, location.href).href;
      inside.document.body.append(script);
      return new Promise((resolve) => (script.onload = resolve));
    }

    deliver(target, data) {
      const message = new MessageEvent("message", { data });
      setTimeout(() => {
        target.dispatchEvent(message);
        if (target === this && this.onmessage) this.onmessage(message);
      });
    }

    postMessage(data) {
      this.ready.then(() => this.deliver(this.inside, data));
    }

    terminate() {}
  };
}
