//! A caller that talks over a WebSocket, now and then over a new one, and hangs up politely.

use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use super::{Call, DEV, WEBSOCKET};

/// Messages on one WebSocket.
const MESSAGES: usize = 300;

pub(super) async fn call(call: &Call<'_>) -> Result<(), String> {
    while !call.should_stop() {
        let socket = match TcpStream::connect(call.testbed.address(WEBSOCKET)).await {
            Ok(socket) => socket,
            Err(error) => return call.gone(&error),
        };
        let mut request = "ws://app.example/talk".into_client_request().unwrap();
        if call.dev {
            request.headers_mut().insert(DEV.0, DEV.1.parse().unwrap());
        }
        let mut talk = match client_async(request, socket).await {
            Ok((talk, _)) => talk,
            Err(error) => return call.gone(&error),
        };
        for number in 0..MESSAGES {
            if call.should_stop() {
                break;
            }
            let failed = |what: &dyn std::fmt::Display| format!("message {number}: {what}");
            talk.send(Message::text(number.to_string()))
                .await
                .map_err(|e| failed(&e))?;
            match talk.next().await {
                Some(Ok(Message::Text(text))) => {
                    let (by, said) = text.split_once(' ').ok_or_else(|| failed(&text))?;
                    if said != number.to_string() {
                        return Err(failed(&text));
                    }
                    call.answered(by)?;
                }
                other => return Err(failed(&format!("{other:?}"))),
            }
        }
        talk.close(None)
            .await
            .map_err(|e| format!("closing: {e}"))?;
        match talk.next().await {
            Some(Ok(Message::Close(_))) => {}
            other => return Err(format!("no farewell but {other:?}")),
        }
        while talk.next().await.is_some() {}
    }
    Ok(())
}
