// A server in Node for the rows of tests/endings.
const http = require('node:http')

const server = http.createServer((request, response) => {
  response.sendDate = false
  switch (request.url) {
    case '/large':
      response.writeHead(200, { 'Content-Length': 8000000 })
      response.end(Buffer.alloc(8000000, 'x'))
      break
    case '/denied': // without reading the body
      response.writeHead(401, { Connection: 'close' })
      response.end('denied')
      break
    case '/cut':
      response.write(Buffer.alloc(300000, 'x'), () => response.socket.destroy())
      break
    default: {
      let length = 0
      request.on('data', (piece) => { length += piece.length })
      request.on('end', () => response.end(`read ${length}`))
    }
  }
})
server.maxRequestsPerSocket = 2
server.listen(0, '127.0.0.1', () => console.log(`listening=127.0.0.1:${server.address().port}`))
