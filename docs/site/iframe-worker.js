// Search in pages that are opened as files. A browser lets them start no worker, so its script runs in a hidden frame
// instead: this class has of Worker what the site's search uses.
if (location.protocol === "file:") {
  window.Worker = class {
    constructor(url) {
      this.waiting = []
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      this.frame.addEventListener("load", () => this.#start(url), { once: true })
      document.body.append(this.frame)
    }

    #start(url) {
      this.inside = this.frame.contentWindow
      // What the worker posts is for the page, and the frame's own function would ask for an origin.
      this.inside.postMessage = data => setTimeout(() => this.onmessage?.({ data }))
      const script = this.inside.document.createElement("script")
      script.src = url
      script.addEventListener("load", () => {
        const waiting = this.waiting
        this.waiting = null
        waiting.forEach(data => this.postMessage(data))
      })
      script.addEventListener("error", event => this.onerror?.(event))
      this.inside.document.head.append(script)
    }

    postMessage(data) {
      if (this.waiting) this.waiting.push(data)
      else setTimeout(() => this.inside.onmessage({ data }))
    }

    terminate() {
      this.frame.remove()
    }
  }
}
